"""Image files to network inputs: bytes are decoded, converted to RGB or gray, resized, cropped and normalized."""
