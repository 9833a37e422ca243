"""Simulate DEMO: four weeks of a two-direction freeway with a branch, as PEMS detectors would record them.

    python data/DEMO/simulate.py                      # writes data/DEMO/DEMO.npz, .csv and DEMO_positions.csv

Vehicles are drawn for the whole period, then each day is run through UXsim, a Newell car-following simulator
(Seo, Journal of Open Source Software 10(106):7617, 2025, doi 10.21105/joss.07617), which makes the queues and their
spill-back. A detector station stands at the downstream end of every freeway section; the ramps have none.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.special import expit
from tqdm import tqdm
from uxsim import World

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY_ROOT))

from lib.errors import InputError, run_script  # noqa: E402
from lib.files import save_npz, written_whole  # noqa: E402

STEP = 300  # seconds between two records
STEPS_PER_DAY = 288
WARM_UP = 3600  # seconds simulated before midnight; the whole freeway takes a quarter of that

METRES_PER_MILE = 1609.344
MILES_PER_HOUR = METRES_PER_MILE / 3600  # in metres per second

PLATOON = 1  # vehicles that UXsim moves together
REACTION_TIME = 1.5  # seconds; with the jam density and 65 mph: 2,060 vehicles an hour and lane
JAM_DENSITY = 0.14  # vehicles per metre and lane
EFFECTIVE_LENGTH = 6.0  # metres of a vehicle as a loop detector sees it

# The freeway from the suburbs (node 0) to downtown, section by section; the branch joins it at one node.
MAIN_MILES = (1.6, 1.2, 1.9, 1.1, 1.5, 0.9, 1.3, 0.8, 1.1, 0.7, 1.0, 0.9)
MAIN_LANES = (3, 3, 3, 3, 3, 3, 4, 4, 4, 3, 3, 3)
BRANCH_MILES = (1.8, 1.4, 1.2, 1.0)
BRANCH_LANES = (2, 2, 2, 2)
JUNCTION = "main6"
BRANCH_SHARE = 0.49  # of the outbound traffic at the junction

# Peak demand in vehicles per 5 minutes where traffic enters, and the share of the passing traffic that leaves there.
INBOUND_ENTRY = {"main0": 275, "branch0": 205}
INBOUND_RAMPS = {
    "main1": (45, 0.05),
    "main2": (50, 0.06),
    "main3": (40, 0.06),
    "main4": (55, 0.08),
    "main5": (45, 0.08),
    "main7": (50, 0.14),
    "main8": (45, 0.16),
    "main9": (40, 0.17),
    "main10": (30, 0.18),
    "main11": (25, 0.20),
    "branch1": (40, 0.05),
    "branch2": (40, 0.06),
    "branch3": (35, 0.08),
}
OUTBOUND_ENTRY = {"main12": 410}
OUTBOUND_RAMPS = {
    "main11": (60, 0.04),
    "main10": (65, 0.05),
    "main9": (75, 0.06),
    "main8": (70, 0.07),
    "main7": (55, 0.08),
    "main5": (45, 0.15),
    "main4": (40, 0.14),
    "main3": (35, 0.13),
    "main2": (30, 0.13),
    "main1": (25, 0.12),
    "branch3": (45, 0.06),
    "branch2": (30, 0.16),
    "branch1": (25, 0.18),
}

MONDAY_TO_SUNDAY = (0.97, 1.00, 1.01, 1.02, 1.04, 0.85, 0.74)  # demand level; the first day is a Monday
START = (40.0, -100.0)  # latitude and longitude of the freeway's first node; no freeway is there
MILES_PER_DEGREE = 69.09  # of latitude
MEDIAN_MILES = 0.06  # from the middle of the road to a station

INCIDENTS_PER_DAY = 1.2
DROPOUTS_PER_DAY = 0.2


@dataclass(frozen=True)
class Section:
    """A stretch of freeway between two interchanges, with a detector station at its downstream end."""

    start: str
    end: str
    miles: float
    lanes: int


@dataclass(frozen=True)
class Direction:
    """One direction of the freeway: its sections, its demand, and the heights of its two weekday peaks."""

    name: str
    sections: list[Section]
    entry: dict[str, int]
    ramps: dict[str, tuple[int, float]]
    morning: float
    evening: float


def directions() -> list[Direction]:
    """Return both directions of the freeway; the order of their sections is the order of the stations."""
    main = [
        Section(f"main{i}", f"main{i + 1}", *road) for i, road in enumerate(zip(MAIN_MILES, MAIN_LANES, strict=True))
    ]
    branch_nodes = [f"branch{i}" for i in range(len(BRANCH_MILES))] + [JUNCTION]
    branch = [
        Section(branch_nodes[i], branch_nodes[i + 1], *road)
        for i, road in enumerate(zip(BRANCH_MILES, BRANCH_LANES, strict=True))
    ]
    outbound = [Section(s.end, s.start, s.miles, s.lanes) for s in reversed(branch + main)]
    return [
        Direction("in", main + branch, INBOUND_ENTRY, INBOUND_RAMPS, morning=0.46, evening=0.22),
        Direction("out", outbound, OUTBOUND_ENTRY, OUTBOUND_RAMPS, morning=0.18, evening=0.48),
    ]


def road_links(network: list[Direction]) -> list[tuple[int, int, float]]:
    """Return (from, to, miles) for every pair of successive stations."""
    stations = [(direction.name, section) for direction in network for section in direction.sections]
    return [
        (i, j, downstream.miles)
        for i, (name, upstream) in enumerate(stations)
        for j, (other, downstream) in enumerate(stations)
        if name == other and upstream.end == downstream.start
    ]


def station_positions(network: list[Direction]) -> list[tuple[float, float]]:
    """Return (latitude, longitude) of every station, for maps; the simulation itself knows lengths alone.

    The freeway runs east, the branch comes from the north-west, and traffic keeps to the right.
    """
    into_junction = sum(MAIN_MILES[: int(JUNCTION.removeprefix("main"))])
    places = {"main0": (0.0, 0.0)} | {
        f"main{i + 1}": (east, 1.5 * np.sin(east / 3)) for i, east in enumerate(np.cumsum(MAIN_MILES))
    }
    for i in range(len(BRANCH_MILES)):
        away = sum(BRANCH_MILES[i:])
        places[f"branch{i}"] = (into_junction - 0.5 * away, places[JUNCTION][1] + 0.85 * away)
    positions = []
    for section in (section for direction in network for section in direction.sections):
        (x, y), (x0, y0) = places[section.end], places[section.start]
        side = MEDIAN_MILES / np.hypot(x - x0, y - y0)
        x, y = x + side * (y - y0), y - side * (x - x0)
        longitude = START[1] + x / MILES_PER_DEGREE / np.cos(np.radians(START[0]))
        positions.append((START[0] + y / MILES_PER_DEGREE, longitude))
    return positions


def drift(random: np.random.Generator, steps: int, deviation: float, hours: float) -> NDArray[np.float64]:
    """Return a stationary Gauss-Markov series of a standard deviation and a correlation time, shape (steps,)."""
    keep = np.exp(-STEP / 3600 / hours)
    shocks = random.normal(0, deviation, steps) * np.sqrt(1 - keep**2)
    series = np.empty(steps)
    series[0] = random.normal(0, deviation)
    for step in range(1, steps):
        series[step] = keep * series[step - 1] + shocks[step]
    return series


def demand_profile(random: np.random.Generator, network: list[Direction], days: int) -> list[NDArray[np.float64]]:
    """Return the demand of each direction as a fraction of its peak, one array a direction.

    The arrays begin one day early: the last hour of that day warms the roads up. No day is like another: its level and
    the height and time of its peaks vary. A day with more commuters has more of them in the morning and in the evening.
    """
    hour = np.arange(STEPS_PER_DAY) * 24 / STEPS_PER_DAY
    profiles: list[list[NDArray[np.float64]]] = [[] for _ in network]
    for day in range(-1, days):
        weekday = day % 7
        level = MONDAY_TO_SUNDAY[weekday] * random.normal(1, 0.05)
        commuters = random.normal(1, 0.12)
        for profile, direction in zip(profiles, network, strict=True):
            morning_hour, evening_hour = random.normal((7.6, 17.1), 0.35)
            morning, evening = random.normal(commuters, 0.06, 2) * (direction.morning, direction.evening)
            if weekday < 5:
                shape = (
                    0.46 * expit((hour - 5.7) / 0.5) * expit((20.3 - hour) / 1.0)
                    + morning * np.exp(-0.5 * ((hour - morning_hour) / 1.1) ** 2)
                    + evening * np.exp(-0.5 * ((hour - evening_hour) / 1.5) ** 2)
                )
            else:
                shape = 0.68 * expit((hour - 9.0) / 0.9) * expit((20.5 - hour) / 1.2)
            profile.append(level * (0.07 + shape))
    # Smoothed over midnight, where one day's numbers give way to the next.
    return [gaussian_filter1d(np.concatenate(profile), sigma=3, mode="nearest") for profile in profiles]


def destinations(direction: Direction, node: str, share: float) -> dict[str, float]:
    """Return where the traffic that passes a node leaves the freeway: the share of each exit downstream."""
    sections = [section for section in direction.sections if section.start == node]
    if not sections:
        return {node: share}
    shares: dict[str, float] = {}
    for section in sections:
        branch = section.end.startswith("branch")
        kept = share if len(sections) == 1 else share * (BRANCH_SHARE if branch else 1 - BRANCH_SHARE)
        leaving = kept * direction.ramps.get(section.end, (0, 0.0))[1]
        if leaving:
            shares[section.end] = leaving
        shares |= destinations(direction, section.end, kept - leaving)
    return shares


@dataclass(frozen=True)
class Trips:
    """The platoons that enter at one origin: when (seconds from the start, sorted) and to which of the exits."""

    origin: str
    exits: list[str]
    seconds: NDArray[np.float64]
    choices: NDArray[np.int64]


def draw_trips(random: np.random.Generator, direction: Direction, profile: NDArray[np.float64]) -> list[Trips]:
    """Draw the platoons of one direction for the whole period.

    The demand of every origin drifts about the profile; the drift travels downstream with the vehicles, so that the
    stations upstream tell something about the stations downstream. Seconds count from the first day, so that those of
    the day before are negative.
    """
    region = drift(random, len(profile), deviation=0.08, hours=2.0)
    edges = (np.arange(len(profile) + 1) - STEPS_PER_DAY) * STEP
    peaks = direction.entry | {node: peak for node, (peak, _) in direction.ramps.items()}
    trips = []
    for node, peak in peaks.items():
        rate = peak * profile * np.exp(region + drift(random, len(profile), deviation=0.12, hours=1.0))
        platoons = np.concatenate(([0.0], np.cumsum(rate))) / PLATOON
        # One platoon at a random moment of each interval in which the demand grows by one platoon.
        number = np.arange(int(platoons[-1])) + random.random(int(platoons[-1]))
        seconds = np.sort(np.interp(number, platoons, edges))
        shares = destinations(direction, node, 1.0)
        exits = [f"{leaving}-off" if leaving in direction.ramps else leaving for leaving in shares]
        choices = random.choice(len(exits), size=len(seconds), p=list(shares.values()))
        trips.append(Trips(f"{node}-on" if node in direction.ramps else node, exits, seconds, choices))
    return trips


def build_world(direction: Direction, seconds: int, seed: int) -> World:
    """Return the empty roads of one direction in UXsim."""
    world = World(
        cpp=True,
        deltan=PLATOON,
        reaction_time=REACTION_TIME,
        tmax=seconds + STEP,  # beyond the last step that is run: at tmax UXsim would gather logs that nobody reads
        duo_update_time=seconds,  # every trip has one route only
        instantaneous_TT_timestep_interval=1,
        vehicle_logging_timestep_interval=-1,
        random_seed=seed,
        print_mode=0,
        save_mode=0,
    )
    nodes = {node for section in direction.sections for node in (section.start, section.end)}
    for node in sorted(nodes | {f"{ramp}-{kind}" for ramp in direction.ramps for kind in ("on", "off")}):
        world.addNode(node, 0, 0)
    for index, section in enumerate(direction.sections):
        world.addLink(
            f"section{index}",
            section.start,
            section.end,
            length=section.miles * METRES_PER_MILE,
            free_flow_speed=(64 + 2 * (index % 3)) * MILES_PER_HOUR,
            jam_density_per_lane=JAM_DENSITY,
            number_of_lanes=section.lanes,
            merge_priority=section.lanes,
        )
    for ramp in direction.ramps:
        for name, start, end in ((f"{ramp}-on", f"{ramp}-on", ramp), (f"{ramp}-off", ramp, f"{ramp}-off")):
            world.addLink(
                name, start, end, length=400, free_flow_speed=18, jam_density_per_lane=JAM_DENSITY, number_of_lanes=1
            )
    return world


@dataclass(frozen=True)
class Incident:
    """A section whose outflow is held to a fraction of its capacity for a while (minutes of the day)."""

    section: int
    start: int
    end: int
    capacity: float


def draw_incidents(random: np.random.Generator, direction: Direction) -> list[Incident]:
    """Draw the incidents of one day and direction, over in time for their queues to clear before midnight."""
    incidents = []
    for section in random.permutation(len(direction.sections))[: random.poisson(INCIDENTS_PER_DAY / 2)]:
        start = int(random.integers(6 * 60, 20 * 60))
        end = start + int(random.integers(20, 70))
        incidents.append(Incident(int(section), start, end, random.uniform(0.35, 0.65)))
    return incidents


def simulate_day(
    direction: Direction, trips: list[Trips], day: int, incidents: list[Incident], seed: int
) -> NDArray[np.float64]:
    """Run one direction for one day; return what perfect detectors would see, (STEPS_PER_DAY, stations, 3).

    The channels are vehicles per 5 minutes, occupancy as a fraction, and speed in mph.
    """
    midnight = day * STEPS_PER_DAY * STEP
    first, last = midnight - WARM_UP, midnight + STEPS_PER_DAY * STEP
    world = build_world(direction, last - first, seed)
    for trip in trips:
        begin, end = np.searchsorted(trip.seconds, (first, last))
        for second, choice in zip(trip.seconds[begin:end], trip.choices[begin:end], strict=True):
            world.addVehicle(trip.origin, trip.exits[choice], second - first)

    links = [world.get_link(f"section{index}") for index in range(len(direction.sections))]
    changes: dict[int, list[tuple[int, float]]] = {}
    for incident in incidents:
        link = links[incident.section]
        changes.setdefault(incident.start, []).append((incident.section, incident.capacity * link.capacity))
        changes.setdefault(incident.end, []).append((incident.section, link.capacity_out))
    for minute in sorted(changes):
        world.exec_simulation(until_t=WARM_UP + minute * 60)
        for section, capacity in changes[minute]:
            links[section].capacity_out = capacity
    world.exec_simulation(until_t=last - first)

    ticks = round(STEP / world.DELTAT)  # simulator steps per record
    warm_up = round(WARM_UP / world.DELTAT)
    rows = slice(warm_up, warm_up + STEPS_PER_DAY * ticks)
    records = np.empty((STEPS_PER_DAY, len(links), 3))
    for station, (link, section) in enumerate(zip(links, direction.sections, strict=True)):
        departed = link.cum_departure[warm_up - 1 : rows.stop : ticks]
        present = (link.cum_arrival - link.cum_departure)[rows].reshape(STEPS_PER_DAY, ticks)
        speed = (link.length / link.traveltime_instant)[rows].reshape(STEPS_PER_DAY, ticks)
        # Space-mean speed: distance driven by time spent on the section (Edie, 1963); free-flow speed when it is empty.
        weight = present + 1e-9
        records[:, station, 0] = np.diff(departed)
        records[:, station, 1] = present.mean(1) / link.length / section.lanes * EFFECTIVE_LENGTH
        records[:, station, 2] = np.average(speed, axis=1, weights=weight) / MILES_PER_HOUR
    return records


def detect(random: np.random.Generator, records: NDArray[np.float64]) -> NDArray[np.float32]:
    """Turn perfect records (T, N, 3) into those of real detectors: small errors, rounding, and stretches of zeros."""
    steps, stations, _ = records.shape
    flow, occupancy, speed = np.moveaxis(records, -1, 0)
    flow = np.rint(flow + random.normal(0, 0.2, flow.shape) * np.sqrt(flow))
    occupancy = np.round(occupancy * random.normal(1, 0.02, flow.shape), 4)
    speed = np.round(speed + random.normal(0, 0.8, flow.shape), 1)
    detected = np.stack([flow, occupancy, speed], axis=-1).clip(min=0)
    for _ in range(random.poisson(DROPOUTS_PER_DAY * steps / STEPS_PER_DAY)):
        start, station, length = random.integers(steps), random.integers(stations), random.integers(12, 25)
        detected[start : start + length, station] = 0
    return detected.astype(np.float32)


def simulate(seed: int, days: int) -> tuple[NDArray[np.float32], list[tuple[int, int, float]]]:
    """Return the series, (days * STEPS_PER_DAY, stations, 3), and the links (from, to, miles) of the stations."""
    demand_random, incident_random, detector_random = np.random.default_rng(seed).spawn(3)
    network = directions()
    profiles = demand_profile(demand_random, network, days)
    trips = [draw_trips(demand_random, *pair) for pair in zip(network, profiles, strict=True)]
    series = []
    for day in tqdm(range(days), desc="days", unit="day"):
        records = [
            simulate_day(direction, direction_trips, day, draw_incidents(incident_random, direction), seed + day)
            for direction, direction_trips in zip(network, trips, strict=True)
        ]
        series.append(np.concatenate(records, axis=1))
    return detect(detector_random, np.concatenate(series)), road_links(network)


def main() -> None:
    """Parse the arguments, simulate, and write the npz with links and positions beside it."""
    parser = argparse.ArgumentParser(description="Simulate the DEMO data set (a few minutes on one core).")
    parser.add_argument("--seed", type=int, default=2018, help="of everything random (default: %(default)s)")
    parser.add_argument("--days", type=int, default=28, help="another number is another series (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).with_name("DEMO.npz"),
        help="the npz file; links and positions go beside it as .csv (default: beside this script)",
    )
    arguments = parser.parse_args()
    if arguments.seed < 0:
        raise InputError(f"--seed: found {arguments.seed}, expected 0 or more")
    if arguments.days < 1:
        raise InputError(f"--days: found {arguments.days}, expected 1 or more")
    if arguments.output.suffix != ".npz":
        raise InputError(f"--output: found {arguments.output}, expected a name that ends in .npz")

    data, links = simulate(arguments.seed, arguments.days)
    save_npz(arguments.output, {"data": data}, compressed=True)
    with written_whole(arguments.output.with_suffix(".csv")) as partial:
        rows = [f"{start},{end},{miles:g}" for start, end, miles in links]
        partial.write_text("\n".join(["from,to,cost", *rows]) + "\n", encoding="utf-8")
    with written_whole(arguments.output.with_name(f"{arguments.output.stem}_positions.csv")) as partial:
        places = station_positions(directions())
        rows = [f"{station},{north:.5f},{east:.5f}" for station, (north, east) in enumerate(places)]
        partial.write_text("\n".join(["sensor,latitude,longitude", *rows]) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {data.shape[0]} steps of 5 minutes, {data.shape[1]} stations, {len(links)} links")


if __name__ == "__main__":
    run_script(main)
