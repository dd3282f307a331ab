"""Text generation: requests are scheduled, run as paged batches, sampled and turned into text."""
