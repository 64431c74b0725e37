"""From a study to runs: an exact plan, and launchers that carry it out."""
