// Umbrella header of the MoE layer library.
#pragma once

#include "moe/bench.h"
#include "moe/config.h"
#include "moe/error.h"
#include "moe/layer.h"
#include "moe/levels.h"
#include "moe/tensor.h"
#include "moe/verify.h"
