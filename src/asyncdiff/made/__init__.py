"""What pipelines make: pictures, videos and sound, whichever pipeline it was; and their files."""
