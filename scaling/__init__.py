"""The science: pure functions over frozen values. Floor 1: no clock, file, process or device."""
