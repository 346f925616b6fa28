"""The parameters of each stage, composed of the settings of the rooms that obey them."""
