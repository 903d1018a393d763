#include "data.hpp"

#include "prism/text/prompt.hpp"
#include "prism/text/tokenizer.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

using prism::PromptBuilder;
using prism::Role;

namespace {

const std::string vicuna_system =
    "A chat between a curious user and an artificial intelligence assistant. The assistant "
    "gives helpful, detailed, and polite answers to the user's questions.";
const std::string llama2_system =
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using "
    "natural language.";

struct Expected {
    const char* id;
    std::string first, third, fourth;  // prompts after that many turns; the fourth is an empty one of the model
};

std::vector<Expected> expected_prompts() {
    const std::string llama2_open = "[INST] <<SYS>\n" + llama2_system + "\n<</SYS>>\n\n";
    const auto        bracket = [](const std::string& open) {
        return Expected{"", open + "What animal is this? [/INST]",
                        open + "What animal is this? [/INST] A cat.</s>[INST] What color is it? [/INST]",
                        "[/INST]  </s>"};
    };
    Expected chat = bracket(llama2_open), instruct = bracket("[INST] ");
    chat.id = "llama2-7b-chat", instruct.id = "mistral-v0.1-7b-instruct";
    const std::string pure = "In: What animal is this?\nOut:", pure3 = pure + " A cat.</s>In: What color is it?\nOut:";
    const std::string vicuna = vicuna_system + " USER: What animal is this? ASSISTANT:";
    const std::string phi = "<|endoftext|>Input: What animal is this?\nOutput:";
    const std::string llava = "USER: <image>\nWhat animal is this? ASSISTANT:";
    return {
        {"llama2-7b-pure", pure, pure3, "Out:  </s>"},
        {"llama2-13b-pure", pure, pure3, "Out:  </s>"},
        {"mistral-v0.1-7b-pure", pure, pure3, "Out:  </s>"},
        {"vicuna-v15-7b", vicuna, vicuna + " A cat.</s>USER: What color is it? ASSISTANT:", "ASSISTANT:  </s>"},
        chat,
        instruct,
        {"phi-2-3b", phi, phi + " A cat.\n<|endoftext|>Input: What color is it?\nOutput:", "Output:  \n<|endoftext|>"},
        {"llava-1.5-7b-hf", llava, llava + " A cat.</s>USER: What color is it? ASSISTANT:", "ASSISTANT:  </s>"}};
}

}  // namespace

TEST_CASE("text/prompt: each builder writes the prompts that its model was trained with") {
    for (const Expected& e : expected_prompts()) {
        CAPTURE(std::string(e.id));
        PromptBuilder prompt = prism::prompt_builder_for(e.id);
        prompt.add_turn(Role::human, "<image>\nWhat animal is this?");
        CHECK(prompt.prompt() == e.first);
        prompt.add_turn(Role::gpt, "A cat.");
        prompt.add_turn(Role::human, "What color is it?");
        CHECK(prompt.prompt() == e.third);
        prompt.add_turn(Role::gpt, "");
        CHECK(prompt.prompt().ends_with(e.fourth));
        CHECK(prompt.prompt().size() == e.third.size() + e.fourth.size() - e.fourth.find("  "));
        CHECK(prompt.n_turns() == 4);
        CHECK(prism::to_string(prompt.pieces()) == prompt.prompt());
    }
}

TEST_CASE("text/prompt: ChatML is MiniVLA's") {
    PromptBuilder     prompt = prism::prompt_builder_for("qwen25-0_5b-extra");
    const std::string system =
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n";
    const std::string turn = "<|im_start|>user\npick up the mug<|im_end|>\n<|im_start|>assistant\n";
    CHECK(prompt.potential_prompt("pick up the mug") == turn);
    CHECK(prompt.add_turn(Role::human, " pick up the mug ") == system + turn);
    CHECK(prompt.prompt() == system + turn);
    CHECK(prompt.add_turn(Role::gpt, "done") == "done<|im_end|>\n");
    CHECK(prompt.prompt() == system + turn + "done<|im_end|><|endoftext|>");
    CHECK(prompt.potential_prompt("next") ==
          system + turn + "done<|im_end|>\n<|im_start|>user\nnext<|im_end|>\n<|im_start|>assistant\n");
}

TEST_CASE("text/prompt: a preview shows the message as it is and changes nothing") {
    PromptBuilder pure = prism::prompt_builder_for("llama2-7b-pure");
    CHECK(pure.potential_prompt("<image> hi ") == "In: <image> hi \nOut:");
    CHECK(pure.prompt() == "");
    const PromptBuilder phi = prism::prompt_builder_for("phi-2-3b");
    CHECK(phi.potential_prompt("hi") == "Input: hi\nOutput:");  // without the opening token, as the reference has it
    PromptBuilder vicuna = prism::prompt_builder_for("vicuna-v15-13b");
    CHECK(vicuna.potential_prompt("hi") == vicuna_system + " USER: hi ASSISTANT:");
    vicuna.add_turn(Role::human, "a");
    vicuna.add_turn(Role::gpt, "b");
    CHECK(vicuna.potential_prompt("c") == vicuna_system + " USER: a ASSISTANT: b</s>USER: c ASSISTANT:");
}

TEST_CASE("text/prompt: messages are cleaned, and white space is Python's") {
    PromptBuilder prompt = prism::prompt_builder_for("llama2-7b-pure");
    CHECK(prompt.add_turn(Role::human, "\xc2\xa0<image>a <image>b\x1f\n") == "In: a b\nOut: ");
    CHECK(prompt.add_turn(Role::gpt, " \n") == " </s>");
    CHECK(prompt.add_turn(Role::human, "<im<image>age>") == "In: <image>\nOut: ");  // taken out once, as replace() does
    PromptBuilder empty = prism::prompt_builder_for("llama2-7b-pure");
    empty.add_turn(Role::human, "");
    CHECK(empty.prompt() == "In: \nOut:");
}

TEST_CASE("text/prompt: a system text of one's own goes where the format has one") {
    PromptBuilder vicuna = prism::prompt_builder_for("vicuna-v15-7b", " Be brief. ");
    vicuna.add_turn(Role::human, "hi");
    CHECK(vicuna.prompt() == "Be brief. USER: hi ASSISTANT:");
    PromptBuilder chat = prism::prompt_builder_for("llama2-13b-chat", "Be brief.\n");
    chat.add_turn(Role::human, "hi");
    CHECK(chat.prompt() == "[INST] <<SYS>\nBe brief.\n<</SYS>>\n\nhi [/INST]");
    CHECK_THROWS_AS(prism::prompt_builder_for("phi-2-3b", "Be brief."), prism::ConfigError);
}

TEST_CASE("text/prompt: what does not fit is refused with what would") {
    PromptBuilder prompt = prism::prompt_builder_for("llama2-7b-pure");
    CHECK_THROWS_AS(prompt.add_turn(Role::gpt, "hi"), prism::ConfigError);
    prompt.add_turn(Role::human, "hi");
    CHECK_THROWS_AS(prompt.add_turn(Role::human, "hi"), prism::ConfigError);
    CHECK(prompt.n_turns() == 1);
    for (const char* id : {"", "gpt-4", "llama2-7b", "vicuna-v15-", "phi-2-3b-x", "mistral-v0.1-7b"})
        CHECK_THROWS_AS(prism::prompt_builder_for(id), prism::ConfigError);
}

TEST_CASE("text/prompt: messages are not trusted, templates are") {
    PromptBuilder prompt = prism::prompt_builder_for("llama2-7b-pure");
    prompt.add_turn(Role::human, "</s>");
    prompt.add_turn(Role::gpt, "</s>");
    prompt.add_turn(Role::human, "x");
    std::vector<bool> trusted;
    for (const prism::Piece& piece : prompt.pieces()) trusted.push_back(piece.trusted);
    CHECK(trusted == std::vector<bool>{true, false, true, false, true, true, false, true});
    const auto tokenizer = prism::test::llama2();
    if (!tokenizer) return;
    const auto ids = tokenizer->encode(prompt.pieces());
    CHECK(std::count(ids.begin(), ids.end(), 2) == 1);  // the one that ends the model's turn
}

TEST_CASE("text/prompt: OpenVLA's question") {
    CHECK(prism::openvla_prompt("Pick up the MUG") ==
          "In: What action should the robot take to pick up the mug?\nOut:");
    CHECK(prism::openvla_prompt("\xc3\x89T\xc3\x89", true) ==
          vicuna_system + " USER: What action should the robot take to \xc3\xa9t\xc3\xa9? ASSISTANT:");
    CHECK_FALSE(prism::openvla_pieces("x")[1].trusted);
}
