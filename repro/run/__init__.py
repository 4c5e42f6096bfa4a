"""How a plan is carried out: unit by unit, here or on other machines."""
