"""From a study file to the list of its runs, and where each stands."""
