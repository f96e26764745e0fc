"""One module a verb: parse what was typed, call the room that does it, print what it answers."""
