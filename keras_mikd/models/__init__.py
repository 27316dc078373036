"""Small networks: those of the distillation papers, with their parameter counts; transformers."""

from keras_mikd.models.cifar_resnet import (
    cifar_resnet,
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from keras_mikd.models.digits_cnn import digits_cnn
from keras_mikd.models.mlp import mlp
from keras_mikd.models.mobilenet import mobilenet_v2, mobilenet_v2_half
from keras_mikd.models.resnet import resnet, resnet18, resnet34, resnet50
from keras_mikd.models.shufflenet import shufflenet_v1, shufflenet_v2
from keras_mikd.models.text_transformer import text_transformer
from keras_mikd.models.vgg import vgg, vgg8, vgg9, vgg11, vgg13, vgg16, vgg19
from keras_mikd.models.vision_transformer import vision_transformer
from keras_mikd.models.wide_resnet import wide_resnet, wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "cifar_resnet",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet110",
    "digits_cnn",
    "mlp",
    "mobilenet_v2",
    "mobilenet_v2_half",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "shufflenet_v1",
    "shufflenet_v2",
    "text_transformer",
    "vgg",
    "vgg8",
    "vgg9",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vision_transformer",
    "wide_resnet",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]
