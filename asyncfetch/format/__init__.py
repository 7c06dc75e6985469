"""The formats, read as hostile input and written: headers, indexes, dtypes, arrays, slices."""
