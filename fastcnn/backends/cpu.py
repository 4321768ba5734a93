def missing_reason(): return "todo"
def unsupported_reason(x, stages): return missing_reason()
