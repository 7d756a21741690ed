"""Looking at mounts from outside, through their `.pinfs`: for the command line and the web page."""
