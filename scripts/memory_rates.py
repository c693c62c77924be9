"""Write the tables of rates of all shipped memories and flash devices."""

import json

from opbyte.hw_models.memory import flash_rates, rates
from opbyte.hw_models.memory.flash_devices import flash_names, load_flash

table = {}
for standard in rates.tabled():
    reads, both = rates.DEFAULT, rates.MIXED
    wanted = [(reads, None), (both, None), (rates.Access(read_pct=0), None)]
    wanted += [(rates.Access(read_pct=r, streams=rates.SEVERAL), None) for r in rates.SEVERAL_READS]
    wanted += [(reads, page) for page in rates.PAGES if page >= standard.burst_bytes]
    table[standard.title] = {
        "digest": rates.digest(standard),
        "shares": {str(rates.written(a, p)): rates.computed(standard, a, p) for a, p in wanted},
    }
rates.TABLE.write_text(json.dumps(table, indent=1) + "\n")
print(f"wrote {rates.TABLE}: {len(table)} memories")

drives = {}
for name in flash_names():
    for device in (load_flash(name), flash_rates.inside_of(load_flash(name))):
        found = {"stream": flash_rates.computed(device)}
        found |= {f"page {p}": flash_rates.computed(device, p) for p in flash_rates.PAGES}
        drives[device.name] = {"digest": flash_rates.digest(device), "rates": found}
flash_rates.TABLE.write_text(json.dumps(drives, indent=1) + "\n")
print(f"wrote {flash_rates.TABLE}: {len(drives)} ways into flash")
