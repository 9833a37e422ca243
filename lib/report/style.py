"""What figures and pages share: their colours, and the horizons that forecasts are drawn for."""

# Okabe and Ito's palette, whose colours differ in brightness as well as in hue; black is for the truth.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HORIZONS = (1, 6, 12)  # steps ahead
TIME_FORMAT = "%a %d %b %Y %H:%M"  # with the weekday, as flows differ by it
