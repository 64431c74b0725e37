"""Training objectives, one per file. With its knobs at zero, each equals plain flow matching bit for bit."""
