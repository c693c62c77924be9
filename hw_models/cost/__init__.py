"""What a machine costs: area, money, carbon, power; numpy broadcasting over design points."""

from opbyte.hw_models.cost.area import area_table, machine_area_m2
from opbyte.hw_models.cost.carbon import carbon_table, die_carbon_kg, machine_carbon_kg
from opbyte.hw_models.cost.energy import machine_power_w, power_table, scale_energy
from opbyte.hw_models.cost.items import CostItem, by_part
from opbyte.hw_models.cost.money import die_price_usd, machine_price_usd, price_table

__all__ = [
    "CostItem",
    "area_table",
    "by_part",
    "carbon_table",
    "die_carbon_kg",
    "die_price_usd",
    "machine_area_m2",
    "machine_carbon_kg",
    "machine_power_w",
    "machine_price_usd",
    "power_table",
    "price_table",
    "scale_energy",
]
