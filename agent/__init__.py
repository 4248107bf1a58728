"""Does one assignment on one machine. Floor 2: knows neither Ray nor the coordinator."""
