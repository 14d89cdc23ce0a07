"""From the results of a sweep to a page: statistics, tables beside the published ones, plots."""
