"""Methods compared: which runs on which data, what they cost, and the tables made of them."""
