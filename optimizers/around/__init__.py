"""What surrounds an update, over all parameters: where its gradient is taken, what is done with it, what is
made of the weights afterwards, and what validation reads in their place.
"""
