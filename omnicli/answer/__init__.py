"""What an answer says about its run, and the seconds that it rests on."""
