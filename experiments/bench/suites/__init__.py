"""What the bench times: quantizing, products, decoding."""
