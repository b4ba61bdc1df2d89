def summary(r): return "x"
def write(r): return "y"
