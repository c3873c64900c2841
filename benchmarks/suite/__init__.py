"""The suite: cells, each one measure of one contestant once; what came of them; the table and the plots."""
