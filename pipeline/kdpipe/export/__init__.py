"""Networks that leave kdpipe: files that take uint8 images and return logits, for runtimes that know neither kdpipe nor
PyTorch.
"""
