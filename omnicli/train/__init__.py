"""The generated world and the training of the models that come with omni."""
