"""The certificate authority: keys and their rotation, tokens, who may ask for which identity."""
