"""What tokens cost, here and elsewhere: dated prices, and the formulas that compare them."""
