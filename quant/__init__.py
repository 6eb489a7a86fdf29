"""What the bytes of a GGUF tensor mean: format records and decoders. Imports no sibling folder."""
