"""The model card: README.md of a package.

    facts            what it states beyond the configuration
    classifier_card  the card of a classifier
    detector_card    the card of a detector
    sections         what both share: metadata for the Hub, results, training, license
    edit             the name of the model and the license in a README.md that may have been edited

Numbers that were not measured and a license that was not given are left out.
"""
