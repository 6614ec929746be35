"""For people and their notebooks: from a folder of images to a model, in a few lines.

The commands are thin over it. `import bigtransfer` gives its names without their weight.
"""
