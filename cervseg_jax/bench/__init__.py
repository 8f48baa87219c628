"""How fast training, prediction and input are on this machine, beside what else could be used."""
