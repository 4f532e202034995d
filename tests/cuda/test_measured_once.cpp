// When a device's value is measured, and when again.
#include <gtest/gtest.h>

#include "cuda/measured_once.h"

namespace moe::cuda {
namespace {

TEST(MeasuredOnce, IsMeasuredUntilItIsKnown) {
  MeasuredOnce<int> once;
  int measured = 0;
  const auto known = [](int value) { return value != 0; };
  const auto ask = [&](int device, int known_at) -> const int& {
    const auto measure = [&] { return ++measured == known_at ? 7 : 0; };
    return once.of(device, measure, known);
  };
  EXPECT_EQ(ask(0, 2), 0);
  const int& value = ask(0, 2);
  EXPECT_EQ(value, 7);
  EXPECT_EQ(&ask(0, 2), &value);
  EXPECT_EQ(measured, 2) << "not again once it is known";
  measured = 0;
  EXPECT_EQ(ask(1, 1), 7) << "a device of its own";
  EXPECT_EQ(value, 7);
}

TEST(MeasuredOnce, GivesUp) {
  MeasuredOnce<int> once;
  int measured = 0;
  for (int call = 0; call < 10; ++call) {
    EXPECT_EQ(once.of(
                  0, [&] { return ++measured, 0; }, [](int value) { return value != 0; }),
              0);
  }
  EXPECT_EQ(measured, MeasuredOnce<int>::kAttempts);
}

}  // namespace
}  // namespace moe::cuda
