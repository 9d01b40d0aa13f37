"""Base models: found and checked (locate, embedded), then loaded, made trainable and exported."""
