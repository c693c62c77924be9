"""Write the table of shares that `opbyte.hw_models.memory.rates` reads: all shipped memories."""

import json

from opbyte.hw_models.memory import rates
from opbyte.hw_models.memory.standards import load_standard, memory_names

table = {}
for name in memory_names():
    standard = load_standard(name)
    reads, both = rates.DEFAULT, rates.MIXED
    wanted = [(reads, None), (both, None), (rates.Access(read_pct=0), None)]
    wanted += [(reads, page) for page in rates.PAGES if page >= standard.burst_bytes]
    table[name] = {
        "digest": rates.digest(standard),
        "shares": {str(rates.written(a, p)): rates.computed(standard, a, p) for a, p in wanted},
    }
rates.TABLE.write_text(json.dumps(table, indent=1) + "\n")
print(f"wrote {rates.TABLE}: {len(table)} memories")
