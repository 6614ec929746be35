"""From a folder of images to batches on a device, checked on the way."""
