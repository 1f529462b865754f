"""Masked autoencoders on images: the encoder, the autoencoder, its training and its data."""

from bamboo.vision import timm_models as timm_models  # importing it registers the named shapes with timm
