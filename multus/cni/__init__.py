"""The CNI specification, 0.1.0 to 1.1.0: types, codec, version conversion, running plugins."""
