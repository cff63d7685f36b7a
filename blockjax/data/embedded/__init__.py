"""The images that ship with the package: 5,000 digits composed on crops of eleven photos."""
