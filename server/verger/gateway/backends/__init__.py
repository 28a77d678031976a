"""Other places where answers come from: what they are asked, what is made of their replies."""
