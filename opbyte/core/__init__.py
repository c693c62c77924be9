"""Words of both sides: units, data types, operator tables, mappings, configuration, errors."""
