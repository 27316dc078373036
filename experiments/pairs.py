r"""Pairs of networks of the papers: every method on each of them, one table.

    python experiments/pairs.py --output_dir=runs/pairs

Without other flags it is a twin for two cores: small pairs of one kind and of two kinds of networks
on the digits, ten labelled images of each class. The 13 pairs of the CRD benchmark, with its data,
schedule and number of epochs, from teachers that are trained first:

    python experiments/pairs.py --pairs=crd --dataset=cifar100 --data_dir=... --sgd \
        --labels_per_class=all --validation_images=1 --learning_rate=0.05 --batch_size=64 \
        --epochs=240 --teacher_epochs=240 --views=240 --trial_seeds=1 --output_dir=runs/crd

Its weights are then chosen on one image, so give `--weights=benchmark`, which tries the published
one alone. `low_capacity` are students of MIMKD's kind, "extremely low capacity": that paper's
networks are not public, and these are ours.

Writes to `<output_dir>/<teacher>-<student>` what `keras_mikd.compare` writes, the teachers to
`<output_dir>/teachers`, and `<output_dir>/pairs.json`. A run that is there is not made again.
"""
