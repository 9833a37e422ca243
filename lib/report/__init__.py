"""What a run looks like to a reader: tables, figures, pages, comparisons."""
