"""Readouts in closed form: features of frozen layers, view whitening, and classifiers that need no backward pass.

    views      random views of images
    features   an image's features: maps of some layers, averaged, rooted
    moments    sums over images -> mean, deviation, covariance; they add over batches and processes
    projection those sums -> a linear map to the leading components, in which views of one image lie close together
    kernel     kernel ridge regression, with the scores that each image gets when it is left out
    graph      label propagation over the nearest neighbours of all images
    ridge      linear ridge regression from sums over images
    candidates classifiers with what leaving one image out says of each
    choose     fits the best of them
    network    all of it as the classifier of a network

Shapes: B images of a batch, N images, D features, K components, M rows of a kernel, C classes.
"""
