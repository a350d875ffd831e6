"""`limner train-autoencoder`: an autoencoder of one's own."""
