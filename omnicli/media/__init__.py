"""From a file to timed pictures and sound: what is in it, which frames to take, decoding, and one clock for both."""
