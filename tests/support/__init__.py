"""What tests share and what is no test itself: problems, stand-ins, comparisons, records."""
