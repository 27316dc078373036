"""Small networks: those of the distillation papers, with their parameter counts; transformers."""

from keras_mikd.models.cifar_resnet import cifar_resnet as cifar_resnet
from keras_mikd.models.cifar_resnet import resnet8 as resnet8
from keras_mikd.models.cifar_resnet import resnet8x4 as resnet8x4
from keras_mikd.models.cifar_resnet import resnet14 as resnet14
from keras_mikd.models.cifar_resnet import resnet20 as resnet20
from keras_mikd.models.cifar_resnet import resnet32 as resnet32
from keras_mikd.models.cifar_resnet import resnet32x4 as resnet32x4
from keras_mikd.models.cifar_resnet import resnet44 as resnet44
from keras_mikd.models.cifar_resnet import resnet56 as resnet56
from keras_mikd.models.cifar_resnet import resnet110 as resnet110
from keras_mikd.models.digits_cnn import digits_cnn as digits_cnn
from keras_mikd.models.text_transformer import text_transformer as text_transformer
from keras_mikd.models.vision_transformer import vision_transformer as vision_transformer
from keras_mikd.models.wide_resnet import wide_resnet as wide_resnet
from keras_mikd.models.wide_resnet import wrn_16_1 as wrn_16_1
from keras_mikd.models.wide_resnet import wrn_16_2 as wrn_16_2
from keras_mikd.models.wide_resnet import wrn_40_1 as wrn_40_1
from keras_mikd.models.wide_resnet import wrn_40_2 as wrn_40_2
