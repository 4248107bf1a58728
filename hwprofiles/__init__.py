"""What a machine can do: data sheets, measured profiles and the roofline. Floor 0: imports nothing of ours."""
