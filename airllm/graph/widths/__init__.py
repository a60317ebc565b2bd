"""How wide the output of each kind of op is, and what its attributes must be.

Each function checks a call, GraphError for a fault, and returns the width; None without an output.
"""
